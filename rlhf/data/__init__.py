"""From the files, folders and hub ids of the config to checked demonstrations and prompts, each in its split."""
