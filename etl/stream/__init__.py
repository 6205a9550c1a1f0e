"""Stream ingest: Kafka's topics -> tables and their quarantine, each message once whatever dies.

Order of commits: table (its commit tells the topic's id and the offsets), quarantine, the state record, Spark's own commit
log. Each can be repeated: of a message that comes again the table itself says that it is there.
"""
