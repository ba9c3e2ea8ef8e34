"""A model that answers many at once, over HTTP in OpenAI's form. app and protocol need the extra [serve]."""
