"""What a run trains on: captions and images, encoded once, and every step's draw of them."""
