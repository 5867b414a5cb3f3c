"""Methods of others to compare with: SliceGPT, and the rule that the paper's authors published."""
