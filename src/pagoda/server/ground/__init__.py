"""What every other room of the server stands on: how it is run, who may ask, what an error looks like."""
