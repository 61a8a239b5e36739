"""What is wrong with a checkpoint, found by rules that have a code, a level and a page each."""
