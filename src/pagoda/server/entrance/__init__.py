"""What every HTTP request passes before anything is made of it."""
