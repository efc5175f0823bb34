"""Human rankings, and a drawn world that stands in for them where no human data may be had."""
