"""How far a served model's predictions are from a baseline's, token by token."""
