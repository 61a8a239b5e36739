"""How much each part of a model suffers from each number format, and the formats that fit a budget best."""
