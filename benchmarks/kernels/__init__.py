"""Every op of ptl_kernels against its peers."""
