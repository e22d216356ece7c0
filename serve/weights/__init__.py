"""New weights under the users' feet: files say what is served, and a replica makes it so."""
