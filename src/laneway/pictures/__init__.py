"""Pictures of epochs: SVG images, and a page that holds all of them."""
