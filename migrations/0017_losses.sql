-- What hosts have done and lost, so that work goes where less of it is done twice.

alter table hosts
    add served_ms bigint not null default 0,
    add losses bigint not null default 0,
    add constraint hosts_served check (served_ms >= 0 and losses >= 0);
comment on column hosts.served_ms is 'How long leases ran there that are closed; halved with the losses whenever it is too much';
comment on column hosts.losses is 'How many of them it lost';
update hosts h set served_ms = l.served_ms, losses = l.losses from (
    select host_id, sum(used_ms)::bigint as served_ms, count(*) filter (where outcome ->> 'kind' = 'host_lost') as losses
    from leases where state = 'closed' group by host_id) l
where h.host_id = l.host_id;
