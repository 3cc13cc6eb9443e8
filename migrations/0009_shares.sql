-- Leases of a share of a device.

alter table leases
    add share_milli bigint,
    add share_vram  bigint,
    add constraint leases_share check ((share_milli is null) = (share_vram is null)
        and (share_milli is null or cardinality(devices) = 1 and share_milli between 1 and 1000 and share_vram > 0));
comment on column leases.devices is 'UUIDs of its GPUs, or of a slice of one';
comment on column leases.share_milli is 'Thousandths of its one GPU''s computing, where it has a share; none where it has all of it';
comment on column leases.share_vram is 'Memory of that share';
