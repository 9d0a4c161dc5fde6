"""Tasks that show whether a memory remembers: texts, questions and their answers, as plain Python."""
