"""
The shipped recipes. This file is only here so that they travel in the wheel; kidspeech.config reads them.
"""
