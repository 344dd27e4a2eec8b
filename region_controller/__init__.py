"""region_controller"""
