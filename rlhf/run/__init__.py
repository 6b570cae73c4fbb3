"""One run of one stage, from the command line to the sealed artifact."""
