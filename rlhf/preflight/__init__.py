"""What a stage will need of memory and disk, told and checked before a weight is loaded."""
