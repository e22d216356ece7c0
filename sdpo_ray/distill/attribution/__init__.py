"""Attribution of an interaction's signal to tokens, and relevance of its follow-up."""
