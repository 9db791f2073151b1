"""What tasks on texts share: language models, how they are queried and judged, and the articles they read."""
