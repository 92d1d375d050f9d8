"""
The command line: parse, call one library function, print. Nothing else prints, and nobody imports this.
"""
