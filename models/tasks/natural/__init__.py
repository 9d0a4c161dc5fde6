"""What people tell in their own words, what they ask about it later, and ordinary talk: written for this project, read by kinds.py and talk.py."""
