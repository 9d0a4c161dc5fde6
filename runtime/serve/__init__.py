"""An HTTP server over one model: OpenAI's endpoints, sessions with a memory, and who may see which. Needs the extra `lm2[serve]`."""
