"""Pure DataFrame -> DataFrame functions: no session, path, clock or random state of their own."""
