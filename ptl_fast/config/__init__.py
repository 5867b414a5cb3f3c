"""Every setting of a run, the rules between settings, and where they come from: flags, files,
presets.
"""
