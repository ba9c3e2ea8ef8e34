"""A conversation by lines, as a person types them: commands and messages in, events out. It knows no terminal."""
