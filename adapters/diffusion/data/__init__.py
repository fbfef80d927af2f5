"""What a run trains on: captions and pictures, encoded once, and every step's draw of them."""
