"""Readers: one file a format; each yields `Record`s and `Fault`s as a stream, and never loses either.

Nothing is imported here: the process that parses HTML pages loads a few of these modules, and none of their settings.
"""
