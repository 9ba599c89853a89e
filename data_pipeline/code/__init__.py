"""Source code: language, licence, generated files, and repositories whose owners opted out.

Readers call what describes a file; `select_code.py` is the stage that removes files.
"""
