"""The pure core: from data files to the line of rows of an epoch, its lanes, progress and states. numpy only."""
