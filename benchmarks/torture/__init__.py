"""Does a run lose anything, let anything in, or end without a reason, whatever is done to it?"""
