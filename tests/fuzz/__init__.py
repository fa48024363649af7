"""``make fuzz``: hostile input for every reader of what somebody else has written."""
