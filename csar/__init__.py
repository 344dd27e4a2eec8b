"""csar"""
