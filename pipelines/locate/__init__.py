"""Where candidates say a photo was taken, how likely that is right, and how both are fitted to a map."""
