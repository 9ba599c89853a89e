"""Kinds of files and values: tables, chats, web captures, dumps.

Nothing is imported here, as in `readers`.
"""
