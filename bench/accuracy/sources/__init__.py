"""Data sets of lm-eval's tasks from the files that their authors published: docs/tasks.md lists them."""
