"""Speed, memory and quality, as ratios against a computed floor and against peers in the same run."""
