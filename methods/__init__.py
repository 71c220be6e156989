"""What single methods add to the two-stream network, a file each."""
