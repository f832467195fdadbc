"""From kept visual tokens and a question to an answer."""
