"""CSV bytes -> validated uint8 pixels and labels."""
