"""Commands beside the jobs: no stage of a data set, but what trials and checks of one need."""
