"""From answers to figures and judgements."""
