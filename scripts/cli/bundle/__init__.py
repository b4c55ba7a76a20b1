"""Commands for bundles: everything that a stack needs, in one directory that is carried to its site.

A site checks a bundle before it has any package of this project: `verify`, and its imports, need Python alone.
"""
