"""Text and tokens: the tokenizer, the chat template, the turns of a conversation. One reader of each for training, chat, evaluation and export."""
