"""What engine and machine say of themselves meanwhile, and what is shown."""
