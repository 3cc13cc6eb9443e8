-- How much of each class of devices is leased.

create table class_use (
    class        text not null,
    epoch        bigint not null references epochs,
    devices      bigint not null,
    leased_milli bigint not null,
    constraint class_use_one primary key (class, epoch),
    constraint class_use_counts check (devices >= 0 and leased_milli >= 0)
);
comment on table class_use is 'What schedulers saw of miners'' devices that take jobs, summed over their looks in an epoch';
comment on column class_use.class is 'Class of the devices';
comment on column class_use.epoch is 'The epoch in which they were seen';
comment on column class_use.devices is 'Devices, once for each look';
comment on column class_use.leased_milli is 'Thousandths of them that were leased then';
