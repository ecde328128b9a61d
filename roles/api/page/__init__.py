"""The web page of the API: what the JSON endpoints answer, for people."""
