-- Prices of GPUs that follow what clouds ask.

alter table hosts
    add below_percent smallint constraint hosts_below_percent check (below_percent between 0 and 99),
    add price_floor   bigint constraint hosts_price_floor check (price_floor >= 0),
    add constraint hosts_following check ((below_percent is null) = (price_floor is null));
comment on column hosts.below_percent is 'By how many percent gpu_hour is kept below the baseline of the cheapest class of its devices; none where its owner sets it';
comment on column hosts.price_floor is 'What gpu_hour then never falls below, in micro-USD';
