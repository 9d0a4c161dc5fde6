"""One small file per backend; each imports its ML library when it is opened, never before."""
