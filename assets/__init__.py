"""Images that the project draws itself, and the small base model pretrained on them."""
