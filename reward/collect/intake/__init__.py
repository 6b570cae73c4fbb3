"""Where answers come from: files, policies that are sampled, and which are asked about first."""
